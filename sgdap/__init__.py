"""Makes trained Keras networks physically smaller while they train."""
