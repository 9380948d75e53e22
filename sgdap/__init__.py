"""Makes trained Keras networks physically smaller while they train.

Most people need one class, `SGDAPCallback`, and `Budget`. The single steps are here too:
`channel_graph` → `plan` → `apply`, and `profile` to see what it brought.
"""

import lazy_loader

__version__ = "0.1.0"

# Imported when they are first used: TensorFlow takes seconds, `sgdap --help` need not wait.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
