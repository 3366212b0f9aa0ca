"""The command ``vitrail``: dispatch to a verb, and conversion of errors to one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence

from vitrail.cli.naming import name_inputs
from vitrail.cli.next_steps import BEGIN
from vitrail.cli.tables import format_terms
from vitrail.errors import ConfigError, DataWarning, VitrailError, closest

# Verb -> what it does. The verb's code is vitrail/cli/VERB.py, imported when the verb is used and not before.
VERBS = {
    "demo": "train, evaluate and compare the models on scikit-learn's digits; write runs/demo/report.html",
    "models": "list, filter and describe the model variants",
    "inspect": "walk one image through a model: shapes, parameters, multiply-adds and time of each step",
    "weights": "describe a file of weights, and try to load it",
    "data": "measure, audit and split the images of a recipe",
    "pretrain": "train a model on images without labels: SimCLR, MAE or SimMIM",
    "train": "train a model from a recipe, settings on the command line, or both",
    "evaluate": "measure a trained run: how good, how sure of it, how robust",
    "explain": "show the image regions that a trained run relies on: overlays, panels, maps, metrics",
    "features": "lay out what runs make of images in the plane, side by side; a page with the images",
    "predict": "classify image files or folders with a trained run; write a CSV",
    "export": "write a trained run as one file of OpenVINO, ONNX or PyTorch, shown to decide like the run",
    "bench": "measure speed and memory of models, alone or beside timm and torchvision",
    "compare": "train the variants of a suite on several seeds, and compare them statistically",
    "report": "write the self-contained page of one or several runs, or of a suite",
}


def usage() -> str:
    """Return the text of ``vitrail --help``."""
    begin = "\n".join(f"  {command}\n      {what}" for command, what in BEGIN.items())
    return (
        "usage: vitrail VERB ...\n\n"
        "Build, train, compare, explain and ship vision transformers.\n\n"
        f"verbs:\n{format_terms(VERBS)}\n\n"
        "options:\n"
        "  -h, --help  show this text; `vitrail VERB --help` shows the verb's\n"
        "  --version   show the version\n"
        "  --debug     show the traceback of an error\n\n"
        f"begin with:\n{begin}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; the process's own when not given.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    write_any_text()
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    plainly = warnings.formatwarning

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, DataWarning):
            return f"warning: {name_inputs(' '.join(str(message).split()), arguments)}\n"
        return plainly(message, category, filename, lineno, line)

    warnings.formatwarning = one_line
    try:
        return _dispatch(arguments)
    except VitrailError as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        # Errors of usage may name kinds of inputs that the command does not take.
        text = text if isinstance(error, ConfigError) else name_inputs(text, arguments)
        print(f"vitrail: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):
            # The reader closed the pipe (`vitrail models | head`): exit without an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        where = f"{error.filename}: " if error.filename else ""
        print(f"vitrail: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError, UnicodeError) as error:
        found = None if debug else _explain(error)
        if found is None:
            raise
        print(f"vitrail: error: {' '.join(str(found).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"vitrail: {error}" if str(error) else "vitrail: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = plainly


def write_any_text() -> None:
    """Escape characters that the output's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _explain(error: Exception) -> Exception | None:
    """Convert an error of workers or of a path to a one-line error; None for bugs."""
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= letter <= "\udfff" for letter in str(error.object)):
        return VitrailError(f"{os.fsencode(error.object)!r} is not UTF-8; rename the file or folder")
    if isinstance(error, UnicodeError):
        return None
    from vitrail.data.workers import translate_worker_error

    return translate_worker_error(error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        from vitrail import __version__

        print(f"vitrail {__version__}")
        return 0
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{closest(verb, VERBS)}")
    module = importlib.import_module(f"vitrail.cli.{verb}")
    code: int = module.main(rest)
    return code


def entry_point() -> None:
    """Run the installed script."""
    if len(sys.argv) > 2:
        from vitrail.machine import keep_large_buffers, let_waiting_threads_sleep

        keep_large_buffers()
        let_waiting_threads_sleep()
    sys.exit(main())
