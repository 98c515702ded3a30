# shellcheck shell=bash
# What the scripts beside this one share: flags, messages, run-or-print. It is sourced, never run.
#
# A script sets its variables to their defaults, then calls parse_flags. Afterwards they hold what
# the user gave, COMMAND the sub-command, PROGRAM everything after "--", and DRY_RUN true or false.

SELF=$(cd "$(dirname "$0")" && pwd)/${0##*/}
SCRIPT=${0##*/}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMAND='' DRY_RUN=false PROGRAM=()

# configs/ and the package are found from here, whatever the directory one types in.
cd "$ROOT" || exit

# One sentence on stderr, exit status 2: the input was wrong.
die() {
  printf '%s: %s\n' "$SCRIPT" "$*" >&2
  exit 2
}

# A remark on stderr.
note() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

# The head comment of the script, which is its --help.
usage() {
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$SELF"
}

# parse_flags "SPEC" "$@": SPEC lists the flags' names; NAME! is a switch, NAME+ may be repeated and
# fills an array. A script with sub-commands names them in COMMANDS before. (The underscores keep
# these functions' own variables apart from a script's flag of that name.)
parse_flags() {
  local _spec=" ${1//$'\n'/ } " _argument _name
  shift
  while (($#)); do
    _argument=$1
    shift
    case $_argument in
      --)
        PROGRAM=("$@")
        return
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      --dry-run | --dry_run) DRY_RUN=true ;;
      --*)
        _name=${_argument%%=*} _name=${_name#--}
        set_flag "$_spec" "${_name//-/_}" "$_argument"
        ;;
      *)
        [[ -n ${COMMANDS:-} && -z $COMMAND ]] ||
          die "unexpected '$_argument'; flags are written --name=value, the program's own follow --"
        [[ " $COMMANDS " == *" $_argument "* ]] ||
          die "there is no command '$_argument'; choose one of: $COMMANDS"
        COMMAND=$_argument
        ;;
    esac
  done
}

# set_flag SPEC NAME ARGUMENT: the variable NAME gets the value in ARGUMENT: --NAME=value, --NAME.
set_flag() {
  local _spec=$1 _name=$2 _argument=$3 _value=${3#*=}
  if [[ $_spec == *" $_name! "* ]]; then
    [[ $_argument == *=* ]] || _value=true
    [[ $_value == true || $_value == false ]] || die "--$_name is a switch; found '$_argument'"
    printf -v "$_name" %s "$_value"
  elif [[ $_spec == *" $_name "* || $_spec == *" $_name+ "* ]]; then
    [[ $_argument == *=* ]] || die "--$_name needs a value: --$_name=VALUE"
    if [[ $_spec == *" $_name+ "* ]]; then
      eval "$_name+=(\"\$_value\")" # SPEC holds the name, so it is a plain word
    else
      printf -v "$_name" %s "$_value"
    fi
  else
    die "there is no flag $_argument; see $SCRIPT --help (the program's own flags follow --)"
  fi
}

# require_count NAME...: these flags must be whole numbers from 1.
require_count() {
  local _name
  for _name in "$@"; do
    [[ ${!_name} =~ ^[1-9][0-9]*$ ]] || die "--$_name=${!_name} is not a whole number from 1"
  done
}

# The program's own flags must follow "--".
require_program() {
  ((${#PROGRAM[@]})) ||
    die "nothing follows --; for example: -- --config=configs/imagenet.py --workdir=gs://bucket/run"
}

# The words of a command, quoted so that a shell reads the same words back.
quote() {
  local word text='' escaped="'\\''"
  for word in "$@"; do
    if [[ -z $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then
      word="'${word//\'/$escaped}'"
    fi
    text+=" $word"
  done
  printf '%s' "${text# }"
}

# Prints a command; in a dry run that is all.
run() {
  if $DRY_RUN; then
    quote "$@"
    echo
  else
    note "$(quote "$@")" && "$@"
  fi
}

# The interpreter: the checkout's own environment, or what PATH has.
default_python() {
  if [[ -x $ROOT/.venv/bin/python ]]; then
    printf '%s' "$ROOT/.venv/bin/python"
  else
    printf 'python3'
  fi
}
