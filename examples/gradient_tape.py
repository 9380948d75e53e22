"""Prunes a model in a training loop of one's own, in rounds, with the optimizer's state.

Run it: python examples/gradient_tape.py
"""

import keras
import numpy as np
import tensorflow as tf

import sgdap

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
x = random.normal(size=(512, 8)).astype("float32")
y = np.argmax(x[:, :3] + 0.5 * x[:, 3:6], axis=1)

model = keras.Sequential(
    [
        keras.Input((8,)),
        keras.layers.Dense(32, "relu", name="first"),
        keras.layers.Dense(32, "relu", name="second"),
        keras.layers.Dense(3, name="end"),
    ]
)
optimizer = keras.optimizers.Adam(0.01)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(512, seed=0).batch(64)


def make_step(model, optimizer):
    """A compiled function holds the weights that it was compiled with: one for each round."""

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    return step


def train(epochs):
    step = make_step(model, optimizer)
    for _ in range(epochs):
        for batch in batches:
            step(*batch)


def accuracy():
    return float(np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y))


train(10)
flops = sgdap.profile(model, latency=False).flops
first = accuracy()
print(f"whole: {flops} FLOPs, accuracy {first:.3f}")

for share in (0.6, 0.35, 0.2):
    plan = sgdap.plan(model, x, sgdap.Budget(flops=share * flops))
    model, optimizer = sgdap.apply(model, plan, optimizer=optimizer)
    train(3)
    print(f"{plan.flops[1]} FLOPs, accuracy {accuracy():.3f}")

assert int(optimizer.iterations) == 19 * len(batches)
assert plan.flops[1] <= 0.2 * flops
assert accuracy() > first - 0.02
