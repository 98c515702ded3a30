"""Prompts of every kind of text that Unicode has, the same ones in every run."""

import itertools
import random
import sys
import unicodedata

WORDS = (
    "hello",
    "A Photo",
    "RED",
    "l'été",
    "don't",
    "WE'LL",
    "they'Ve",
    "I'm",
    "2024",
    "x",
    "naïve",
)
# What one of the two tokenizers, or one of their libraries, treats in a way of its own.
SPECIAL = (
    "hello!", "!", "!!!", "! !", "a !b", "what?!", "!<|endoftext|>!", "<|startoftext|>",
    "a<|endoftext|>b", "<|ENDOFTEXT|> x", "<|endoftext|", "< |endoftext|>", "<start_of_text>",
    "a <END_OF_TEXT> b", "<ſtart_of_text>", "it'ſ", "'S 'ſt 'LL 'Re", "''s'''d",
    "“smart” ‘quotes’ it’s „low“ «guillemets»", "&amp; &lt;b&gt; &amp;amp; &#33; &quot;x&quot;",
    "&NotEqualTilde; &nbsp; &copy &hellip;", "schÃ¶n â€œquotedâ€\x9d", "ｆｕｌｌ　ｗｉｄｔｈ！",
    "ﬁﬂ ﬃ Ⅷ ½ ① ㎏", "ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ", "İstanbul ISPARTA ıi", "STRASSE Straße ẞ", "Ǆ ǅ ǆ",
    "Å Å Å", "K k", "\u0345x\u0345", "e\u0301 o\u0308\u0323 n\u0303",
    "한국어 \u1112\u1161\u11ab", "👩‍👩‍👧 👍🏽 🇩🇪 ❤️ 1️⃣", "東京タワー 中文。日本語、",
    "שלום العربية हिन्दी ไทย", "a\u200bb\u200cc\u200dd\ufeffe", "\u202eright to left\u202c",
    "tab\tnew\nline\r\nfeed\x0c\x0b", "\x1c\x1d\x1e\x1f\x85\xa0", "a\x00b\x07\x1b[31mred",
    "\u2028\u2029\u3000\u1680", "-- --- … — ––", "C++ c# .NET a_b __init__",
    "https://a.b/c?d=e&f=g#h", "", " ", "\n", "   leading", "trailing   ", "1234567890",
    "3.14 1,000 10%", "²³¹ ٣٤ ௧ Ⅳ", "$€£¥₿ ±×÷≠≈∞", "very " * 200, "!" * 200,
    "supercalifragilisticexpialidocious" * 30, "中" * 100, "😀" * 100,
)  # fmt: skip


def by_category(num):
    """{general category: up to `num` characters all over it}, without surrogates."""
    found = {}
    for code in range(sys.maxunicode + 1):
        found.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    del found["Cs"], found["Cn"]
    return {name: some[:: max(1, len(some) // num)][:num] for name, some in found.items()}


def by_script(num):
    """Up to `num` letters of each script, by the first word of their names."""
    found = {}
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        if "LETTER" in name or "SYLLABLE" in name or "IDEOGRAPH" in name:
            found.setdefault(name.split()[0], []).append(chr(code))
    return {name: some[:: max(1, len(some) // num)][:num] for name, some in found.items()}


def prompts():
    """At least 2,000 of them."""
    numbers = random.Random(0)
    categories, scripts = by_category(24), by_script(12)
    assert len(categories) == 28 and len(scripts) > 130
    texts = list(SPECIAL)
    for sign in itertools.chain.from_iterable(categories.values()):
        word, other = numbers.choice(WORDS), numbers.choice(WORDS)
        texts.append(
            numbers.choice((f"{word}{sign}{other}", f"{sign} {word}", f"1{sign}!{sign}'s"))
        )
    for letters in scripts.values():
        texts += [
            "".join(letters),
            f"{letters[0]}{letters[-1]} {letters[0]}{numbers.choice(WORDS)}",
        ]
    signs = list(itertools.chain(*categories.values(), *scripts.values(), WORDS, SPECIAL[:24]))
    while len(texts) < 2_400:
        some = numbers.choices(signs, k=numbers.randint(2, 30))
        texts.append("".join(x + numbers.choice(("", " ", "")) for x in some))
    return texts
