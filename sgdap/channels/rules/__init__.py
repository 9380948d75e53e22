"""One rule per layer class, in files by family; importing this package registers them all."""

from sgdap.channels.rules import (  # noqa: F401
    activation,
    attention,
    convolution,
    dense,
    merging,
    normalization,
    operations,
    recurrent,
    sequence,
    shape,
    trial,
    wrapper,
)
