"""The verb `report`: a run's report as one HTML file."""

from dataclasses import dataclass

from slm.commands.lookup import find_run
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.errors import output_path
from slm.commands.parsing.options import RootOptions, parse, positional


@dataclass(frozen=True)
class ReportOptions:
    """The options of `report`."""

    run: str | None = positional("?")
    """A run's folder, or its name such as version_0. Without one, the newest."""
    out: str | None = None
    """The file; null: report.html in the run's folder."""
    trainer: RootOptions = RootOptions()


def report(arguments: Arguments) -> int:
    """Writes the report of a run."""
    options = parse("report", ReportOptions, arguments, "slm report [RUN] [--out FILE]")
    run = find_run(options.run, options.trainer.logs)
    out = output_path("--out", options.out)
    from slm.reports.run_report import write_report  # matplotlib and torch take seconds to load

    print(f"Report     {write_report(run.folder, out)}")
    return 0
