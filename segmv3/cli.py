"""The `segmv3` command: it finds the command to run, and turns errors and signals into one line and an exit code.

The commands are modules of `segmv3.commands`, imported when they are asked for. Whatever imports torch is imported
inside them, so that `segmv3 --help` answers at once.
"""

import errno
import io
import os
import signal
import sys
import threading
import warnings
from importlib import import_module
from types import FrameType
from typing import Any

import segmv3
from segmv3.errors import ConfigError, Interrupted, Segmv3Error, Segmv3Warning, is_out_of_memory, printable, shortened

_COMMANDS = (
    *("train", "finetune", "adapt", "fit", "sweep", "evaluate", "compare", "submit", "predict", "view", "classify"),
    "detect",
    *("models", "config", "weights", "export", "data", "benchmark"),
)
_ELSEWHERE = {"classify": "segmv3.imagenet.command", "detect": "segmv3.detection.command"}

_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_heard: list[int] = []
"""Signals that arrived while the command ran."""

_USAGE = """\
usage: segmv3 COMMAND ...

  train CONFIG [--run DIR] [--optim.lr 0.02 ...]     train a net, or go on where the run stopped
  finetune DATA [--from WEIGHTS] [--minutes 10]      fit a net to your labelled frames, in a given time
  adapt WEIGHTS FRAMES -o NEW                        fit a net to new streets without labels
  fit CONFIG --weights FILE --budget-ms 30 -o NEW    narrow a net until it is fast enough on this machine
  sweep CONFIG SPACE.toml --output DIR               search settings: many runs, the hopeless ones cut short
  evaluate CONFIG --weights FILE                     score weights on a split
  compare RUN RUN ... | A.json B.json                runs on one page, or two result files, with intervals
  submit CONFIG --weights FILE --output DIR          files for the Cityscapes test server, checked
  predict SOURCE [--weights FILE] [--output DIR]     label images, a video, a camera or a stream
  view SOURCE|RESULTS|DATASET|RUN                    look at it in a local page
  classify train CONFIG [--run DIR]                  train a backbone on ImageNet, or any folder of pictures
  classify evaluate --weights FILE --data.root DIR   top-1 and top-5
  classify predict IMAGE ... --weights FILE          what is in a picture
  classify prepare DIR --labels FILE -o DIR          ImageNet's validation pictures into class folders
  detect train CONFIG [--run DIR]                    train a net that draws boxes around objects
  detect evaluate CONFIG --weights FILE              mAP, by COCO's own script
  detect predict SOURCE --weights FILE [-o DIR]      boxes on images or a video, and as COCO's JSON
  detect check CONFIG | prepare DIR | models         what a data set of boxes holds; Cityscapes' boxes; the paper's nets
  weights import FILE_OR_NAME [-o FILE]              load another project's weights, or published ones
  weights list                                       the published weights that can be used by name
  weights average FILE FILE ... -o FILE              the mean of several runs' weights
  weights push FILE USER/NAME                        publish weights on the Hugging Face Hub, with a card
  export WEIGHTS --to onnx|openvino|...              a file for another runtime, proved against PyTorch
  models [--all]                                     the named nets, or the whole family: size, cost, accuracy
  config [NAME -o FILE]                              the configs that come with segmv3; a copy of one to edit
  data mini-city DIR                                 draw a small street data set in Cityscapes layout
  data import SOURCE OUTPUT                          a data set of what you have: images, masks, annotations
  data check CONFIG_OR_DIR [--output DIR]            what a data set holds and all that is wrong with it
  data pack CONFIG_OR_DIR OUTPUT                     decode a data set once: training reads crops from it
  data next POOL --weights FILE -o DIR               which unlabelled frames to label next, with a page
  data suspects CONFIG_OR_DIR --weights FILE -o DIR  the labels that look wrong, with a page
  benchmark table [--evaluate --data.root DIR]       the mmsegmentation table with our numbers beside it
  benchmark metrics                                  how long scoring takes, beside other projects
  benchmark loader [--data.root DIR]                 how fast training samples are made, beside mmsegmentation's
  benchmark training                                 how fast nets train, beside plain loops of other projects
  benchmark latency|peers|throughput|video|decode|paper  how fast the nets are here, beside other projects

segmv3 COMMAND --help shows the flags that people change, --help-all all of them; segmv3 --version prints the version.
Exit codes: 0 done, 2 data or usage, 3 partial output, 4 environment or numerics, 129, 130 and 143 interrupted.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what goes wrong is one line on standard error.

    Args:
        arguments: without the program's name. None: those of this process, which ends when this returns.
    """
    if arguments is None:
        try:
            code = main(sys.argv[1:])
        except (Interrupted, KeyboardInterrupt):  # after the command had ended
            code = 128 + _heard[-1]
        for number in _SIGNALS:  # while the interpreter goes, an exception would end in a traceback
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: os._exit(128 + number))
        return code
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding has not
    _heard.clear()
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, _on_signal)
        sys.unraisablehook = _on_unraisable
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"segmv3 {segmv3.__version__}")
        return 0
    try:
        _refuse_odd(arguments)
        _run(arguments)
    except Segmv3Error as error:
        return _fail(_last_message(error), error.exit_code)
    except Interrupted as stopped:
        return _fail(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _unexpected(error)
    return 0


def _unexpected(error: Exception) -> int:
    """Exit code for an exception that no part of the program expects. A fault of segmv3 is raised again."""
    if _heard:  # interrupted C code, such as matplotlib's, raises errors of its own
        return _fail("interrupted: what was finished is kept", 128 + _heard[0])
    if is_out_of_memory(error):
        return _fail("environment: out of memory; use smaller images, crops or batches", 4)
    if isinstance(error, OSError):  # a name too long, a folder locked away
        name = shortened(error.filename or "a file", 200)
        code = 4 if error.errno in _OF_THE_MACHINE else 2
        return _fail(f"files: {name} cannot be used ({error.strerror or error})", code)
    raise error


def _refuse_odd(arguments: list[str]) -> None:
    """Raises: ConfigError for an argument that can name nothing: an empty one, or one that no file name can hold."""
    for place, argument in enumerate(arguments):
        after = f" after {shortened(arguments[place - 1])}" if place else ""
        if not argument:
            raise ConfigError(f"the argument{after} is empty; was a variable of the shell not set?")
        try:
            whole = b"\0" not in os.fsencode(argument)
        except UnicodeEncodeError:
            whole = False
        if not whole:
            raise ConfigError(f"{shortened(argument)} holds characters that no file name can have")


def _run(arguments: list[str]) -> None:
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        raise ConfigError(f"there is no command {name!r}; segmv3 has {', '.join(_COMMANDS)}")
    import_module(_ELSEWHERE.get(name, f"segmv3.commands.{name}")).run(rest)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """What is open is closed on the way out. Training has a handler of its own."""
    _heard.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted("what was finished is kept", number)


def _on_unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """A signal that arrived where Python drops exceptions, in a `__del__` or at a garbage collection, comes again."""
    if _heard and isinstance(lost.exc_value, Interrupted | KeyboardInterrupt):
        again = threading.Timer(0.1, os.kill, [os.getpid(), _heard[-1]])
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _last_message(error: Segmv3Error) -> str:
    """The one line of an error; torch wraps a worker's error in that worker's traceback."""
    return str(error).strip().rpartition("Error: ")[2] if "Traceback" in str(error) else str(error)


def _fail(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Our own warnings are for the user, one line; other packages' are not."""
    if issubclass(category, Segmv3Warning):
        print(printable(message), file=sys.stderr)
