"""The verb `report`: a run's report as one HTML file."""

from collections.abc import Sequence

from slm.commands.parsing import os_errors_explained, output_path, quick_parser
from slm.commands.runs import find_run


@os_errors_explained()
def run_report(words: Sequence[str]) -> int:
    """Writes the report of a run.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: There is no such run, or no place for the file.
    """
    parser = quick_parser("report", "slm report [RUN] [--out FILE]")
    parser.add_argument(
        "run",
        nargs="?",
        type=str,
        help="A run's folder, or its name such as version_0. Without one, the newest.",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="The file; null: report.html in the run's."
    )
    parser.add_argument(
        "--trainer.default_root_dir",
        type=str | None,
        default=None,
        help="Where lightning_logs is.",
    )
    options = parser.parse_args(list(words))
    run = find_run(options.run, options.trainer.default_root_dir)
    out = output_path("--out", options.out) if options.out else None
    from slm.reports.run_report import write_report

    print(f"Report     {write_report(run, out)}")
    return 0
