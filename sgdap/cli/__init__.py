"""The command line, `sgdap`: what each command is asked for stands in `commands.py`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The arguments after `sgdap`; None: those of the process.

    Returns:
        The exit status: 0: done; 1: the input makes no sense (the reason is on standard error); 2:
        there is no such command or option; 3: a limit was missed.
    """
    from sgdap.cli.commands import app

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _quiet_native_log():
            app(given, prog_name="sgdap")
    except SystemExit as end:  # so typer ends, after help and wrong usage too
        return int(end.code or 0)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        name = next((word for word in given if not word.startswith("-")), "")
        print(f"sgdap {name}: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _quiet_native_log() -> Iterator[None]:
    """Hides what TensorFlow's native code writes to standard error, unless something fails.

    No log level hides these lines (about missing GPUs and CPU instructions). Python's own standard
    error stays as it is.
    """
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        real = os.dup(2)
        python_stderr = sys.stderr
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (ValueError, TypeError, ImportError, OSError, RuntimeError):
            raise  # explains itself: the hidden lines are not needed
        except Exception:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
            sys.stderr.close()
            sys.stderr = python_stderr
