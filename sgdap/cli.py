"""The command line: `sgdap demo`, `sgdap inspect`."""

from __future__ import annotations

import argparse
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
        The exit status: 0 on success, 1 if the input is invalid (the reason is on standard error).
    """
    parser = argparse.ArgumentParser(prog="sgdap", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="train LeNet-5 on MNIST, prune it in fit, serve it without sgdap"
    )
    demo.add_argument("--arch", choices=["lenet5", "caffe"], default="lenet5")
    demo.add_argument("--out", default="runs/demo", help="folder for models and figure")
    demo.add_argument("--data", help="MNIST as an .npz in Keras' format (default: SGDAP_MNIST, …)")
    demo.add_argument("--flops", type=float, default=0.3, help="FLOPs to keep, a fraction")
    demo.add_argument("--params", type=float, default=0.3, help="parameters to keep, a fraction")
    demo.add_argument("--epochs", type=int, default=4, help="epochs of the dense training")
    demo.add_argument("--prune-epochs", type=int, default=7, help="epochs of the pruning run")
    demo.add_argument("--seed", type=int, default=0)
    inspect = commands.add_parser("inspect", help="show which channels of a model leave together")
    inspect.add_argument("model", help="a saved model: a .keras file")
    inspect.add_argument("--picture", help="also draw the layers, into this file (.png, .svg)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _quiet_native_log():
            if options.command == "inspect":
                _inspect(options.model, options.picture)
                return 0
            from sgdap.demo import run_demo

            run_demo(
                options.arch,
                options.out,
                path=options.data,
                flops=options.flops,
                params=options.params,
                epochs=options.epochs,
                prune_epochs=options.prune_epochs,
                seed=options.seed,
            )
    except (ValueError, OSError) as error:
        print(f"sgdap {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _inspect(path: str, picture: str | None) -> None:
    import keras

    import sgdap

    inspection = sgdap.inspect(keras.models.load_model(path, compile=False))
    print(inspection)
    if picture:
        inspection.plot().savefig(picture, dpi=150)


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
        except (ValueError, OSError):
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
