"""The pipeline as a person and DVC meet it: `python -m pipeline COMMAND`.

    clean               check data/, strip every notebook, fingerprint what it depends on     (a DVC stage)
    run NAME            execute one chapter into results/NAME                                 (a DVC stage)
    repro               `dvc repro`, then a table: stage, time, state, claims that hold, where to look
    fresh               the same with everything forced, then a certificate against the results before
    publish             executed notebooks, gallery, metrics and ledger into the tree (maintainers)
    new NAME            the skeleton of a chapter, as 06_my_method: notebook, parameters, claim, method file, test
    architecture        docs/architecture.svg, the floors of the library drawn from what imports what
    student [FOLDER]    an edition of the notebooks without solutions and outputs, into student/
    make_data [FOLDER [ORIGINALS]]  the bundled data set, into data/; MNIST from original files or OpenML
"""
import sys
from importlib import import_module
from pathlib import Path

from pipeline.parameters import Refused

# command: (module, function, most arguments, fewest); imported when asked for, for some need torch
COMMANDS = {
    "clean": ("fingerprint", "clean", 0, 0),
    "run": ("run", "run", 1, 1),
    "repro": ("repro", "repro", 0, 0),
    "fresh": ("certificate", "fresh", 0, 0),
    "publish": ("publish", "publish", 0, 0),
    "architecture": ("architecture", "draw", 0, 0),
    "new": ("new", "new", 1, 1),
    "student": ("student", "write", 1, 0),
    "make_data": ("make_data", "make", 2, 0),
}


def main(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    command, *rest = arguments or [""]
    if command in ("", "-h", "--help", "help"):
        print(__doc__)
        return
    module, function, most, least = COMMANDS.get(command, ("", "", -1, 0))
    if not least <= len(rest) <= most:
        raise Refused(f"command: got {' '.join(arguments)!r}; need one of\n{__doc__.partition(chr(10) * 2)[2]}")
    folders = {"student": "student", "make_data": "data"}
    if command in folders:
        rest = [Path(name) for name in rest or [folders[command]]]
    getattr(import_module(f"pipeline.{module}"), function)(*rest)


if __name__ == "__main__":
    main(sys.argv[1:])
