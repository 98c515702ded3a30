"""The measured table in the model card of a run's export."""

from dimo_jax import bundles
from dimo_jax.bundles import card, places
from dimo_jax.common.files import AnyPath
from dimo_jax.evaluation.report import page_tables, schema


def write(workdir: AnyPath) -> None:
    """Give the table of the report in a work directory to the export beside it."""
    results, export = schema.read(workdir / "report"), workdir / places.EXPORT_FOLDER
    table = page_tables.markdown(page_tables.every_metric(results), mark_best=False)
    card.add_table(export, bundles.read_config(export), table)
