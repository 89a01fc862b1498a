"""`compressor demo`."""

from typing import Annotated

import typer

from compressor.cli.options import DryRun, Json, typed
from compressor.cli.results import carry_out

HELP = (
    "Show the whole job in about a minute: a small CNN that reads digits is profiled, brought to half its MACs by "
    "AdapNet, which prunes, merges and inserts filters while it trains, then measured and exported."
)
EXAMPLE = "compressor demo --out runs/demo"


def demo(
    ctx: typer.Context,
    out: Annotated[
        str, typer.Option(metavar="FOLDER", rich_help_panel="Output", help="Folder for the results.")
    ] = "runs/demo",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace whatever run is in the folder.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    from compressor.runs.demo import demo_job

    carry_out(demo_job(out, overwrite, typed(ctx)), dry_run=dry_run, json=json)
