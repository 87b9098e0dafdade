"""The pipeline as a person and DVC meet it: `python -m pipeline COMMAND`, in the root of the repository.

    setup               make or refresh .venv from requirements.txt; the other commands go on in it by themselves
    data                pull the bundled data set
    repro               `dvc repro`, then a table: stage, time, state, claims that hold, where to look, what moved
    compare             the results here against the published ones: which verdicts and numbers moved, how far
    check               unit tests
    test                everything: unit tests, the pipeline on a small project, every notebook re-executed
    fresh               everything forced, then a certificate against the results before
    lab [OPTION ...]    JupyterLab with Chapter 0 open
    student [FOLDER]    an edition of the notebooks without solutions and outputs, into student/
    course              for the teacher, into results/course/: editions, slides, assignments, an archive for students
    grade FOLDER        a table of the exercises in a folder of students' notebooks, as CSV
    book                the site, into results/book/
    publish             executed notebooks, gallery, metrics and ledger into the tree (maintainers)
    new NAME            the skeleton of a chapter, as 06_my_method: notebook, parameters, claim, method file, test
    architecture        docs/architecture.svg, the floors of the library drawn from what imports what
    make_data [FOLDER [ORIGINALS]]  the bundled data set, into data/; MNIST from original files or OpenML
    clean               check data/, strip every notebook, fingerprint what it depends on     (a DVC stage)
    run NAME            execute one chapter into results/NAME                                 (a DVC stage)
"""
import sys
from importlib import import_module
from pathlib import Path

from pipeline import setup
from pipeline.files import Refused

# command: (module, function, most arguments, fewest); imported when asked for, for most need the packages
COMMANDS = {
    "setup": ("setup", "setup", 0, 0),
    "data": ("repro", "data", 0, 0),
    "repro": ("repro", "repro", 0, 0),
    "compare": ("compare", "compare", 0, 0),
    "check": ("prove", "check", 0, 0),
    "test": ("prove", "test", 0, 0),
    "fresh": ("certificate", "fresh", 0, 0),
    "lab": ("lab", "lab", 99, 0),
    "student": ("student", "write", 1, 0),
    "course": ("course", "course", 0, 0),
    "grade": ("grade", "grade", 1, 1),
    "book": ("book", "book", 0, 0),
    "publish": ("publish", "publish", 0, 0),
    "architecture": ("architecture", "draw", 0, 0),
    "new": ("new", "new", 1, 1),
    "make_data": ("make_data", "make", 2, 0),
    "clean": ("fingerprint", "clean", 0, 0),
    "run": ("run", "run", 1, 1),
}
FOLDERS = {"student": "student", "make_data": "data"}  # where a command writes when not told


def main(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    command, *rest = arguments or [""]
    if command in ("", "-h", "--help", "help"):
        print(__doc__)
        return
    module, function, most, least = COMMANDS.get(command, ("", "", -1, 0))
    if not least <= len(rest) <= most:
        raise Refused(f"command: got {' '.join(arguments)!r}; need one of\n{__doc__.partition(chr(10) * 2)[2]}")
    if command != "setup":
        setup.go_on(arguments)
        setup.surroundings()
    if command in FOLDERS or command == "grade":
        rest = [Path(name) for name in rest or [FOLDERS[command]]]
    try:
        getattr(import_module(f"pipeline.{module}"), function)(*rest)
    except KeyboardInterrupt:  # what was asked for needs no traceback
        raise SystemExit(130) from None
    except OSError as error:  # such as a folder that cannot be written to
        raise Refused(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
