"""One step after surgery is one step of a slim model built by hand with hand-sliced state."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import sgdap
from sgdap.surgery import prune_in_place
from sgdap.surgery.optimizer import remade
from tests.models import mlp, randomise
from tests.oracles import random_removal

KEPT = {"conv": [0, 2, 3], "hidden": [0, 1, 4, 5]}
WIDTHS = {"conv": 5, "hidden": 6}
POSITIONS = 4  # of the convolution's output

CLASSES = [
    value
    for _, value in inspect.getmembers(optimizers, inspect.isclass)
    if issubclass(value, optimizers.Optimizer)
    and value
    not in (optimizers.Optimizer, optimizers.LossScaleOptimizer, optimizers.MultiOptimizer)
]


class Doubled(optimizers.Optimizer):
    """A user's own, with a setting that its config forgets and slots of its own shapes."""

    def __init__(self, learning_rate=0.01, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.factor = 1.0

    def build(self, variables):
        super().build(variables)
        self.seen = [self.add_variable_from_reference(v, name="seen") for v in variables]
        self.first = [self.add_variable(v.shape.as_list()[:1], name="anything") for v in variables]
        self.turned = [self.add_variable((3, *v.shape[::-1]), name="some") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        number = self._get_variable_index(variable)
        seen, first, turned = self.seen[number], self.first[number], self.turned[number]
        self.assign_add(seen, gradient)
        self.assign_add(first, keras.ops.sum(gradient, axis=tuple(range(1, len(variable.shape)))))
        self.assign_add(turned, keras.ops.repeat(keras.ops.transpose(gradient)[None], 3, 0))
        along = keras.ops.reshape(first, (-1, *[1] * (len(variable.shape) - 1)))
        step = seen + along + keras.ops.transpose(turned[1])
        self.assign_sub(variable, self.factor * learning_rate * step)


class Halving(optimizers.schedules.LearningRateSchedule):
    """A user's own schedule that is not registered."""

    def __call__(self, step):
        return 0.1 / keras.ops.cast(step + 1, "float32")


def doubled():
    optimizer = Doubled()
    optimizer.factor = 2.0
    return optimizer


def spared(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def shared_out():
    return optimizers.MultiOptimizer(
        optimizers.OptimizerMap(
            optimizers.SGD(0.01, momentum=0.9), {".*/hidden/.*": optimizers.Adam(0.01)}
        )
    )


def shared_out_by_a_function():
    by_rank = {4: optimizers.Adam(0.01), 2: optimizers.Muon(0.01), 1: optimizers.RMSprop()}
    return optimizers.MultiOptimizer(lambda variable: by_rank[len(variable.shape)])


SETTINGS = {
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "amsgrad": lambda: optimizers.AdamW(amsgrad=True),
    "centered": lambda: optimizers.RMSprop(momentum=0.9, centered=True),
    "averages": lambda: optimizers.Adam(use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "accumulation of three": lambda: optimizers.Adafactor(0.1, gradient_accumulation_steps=3),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 9), momentum=0.9),
    "own schedule": lambda: optimizers.SGD(Halving(), momentum=0.9),
    "function": lambda: optimizers.Adam(lambda: 0.01),
    "own schedule and loss scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(Halving())
    ),
    "clipped norm": lambda: optimizers.SGD(0.1, momentum=0.9, clipnorm=0.01),
    "clipped global norm": lambda: optimizers.Adam(0.1, global_clipnorm=0.01),
    "weight decay": lambda: spared(optimizers.AdamW(0.1, weight_decay=0.5)),
    "paths": lambda: optimizers.Muon(0.01, exclude_layers=["net/hidden"]),
    "several": shared_out,
    "several by a function": shared_out_by_a_function,
    "own": doubled,
    "own and loss scale": lambda: optimizers.LossScaleOptimizer(doubled()),
}


def net(widths) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(widths["conv"], 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(widths["hidden"], "elu", name="hidden"),
            layers.Dense(3, name="end"),
        ],
        name="net",
    )


def gradients(model: keras.Model, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=v.shape).astype("float32") for v in model.trainable_variables]


def step(model: keras.Model, seed: int = 0) -> None:
    model.optimizer.apply(gradients(model, seed), model.trainable_variables)


def by_hand(model: keras.Model) -> dict[str, tuple]:
    """The entries that stay along each axis of each variable, written down without our code."""
    conv, hidden, all_of = KEPT["conv"], KEPT["hidden"], slice(None)
    flat = [WIDTHS["conv"] * position + c for position in range(POSITIONS) for c in conv]
    stays = {
        "conv/kernel": (all_of, all_of, all_of, conv),
        "conv/bias": (conv,),
        "hidden/kernel": (flat, hidden),
        "hidden/bias": (hidden,),
        "end/kernel": (hidden, all_of),
        "end/bias": (all_of,),
    }
    return {variable.path: stays[variable.path.split("/", 1)[1]] for variable in model.weights}


def cut(value: np.ndarray, stays: tuple) -> np.ndarray:
    for axis, index in enumerate(stays):
        value = value[(slice(None),) * axis + (index,)]
    return value


def cut_slots(optimizer, stays: dict[str, tuple]) -> dict[int, np.ndarray]:
    """The state of an optimizer for the slim model, by the id of the variables."""
    parts = [optimizer, *getattr(optimizer, "optimizers", [])]
    parts += [optimizer.inner_optimizer] if hasattr(optimizer, "inner_optimizer") else []
    values = {id(slot): slot.numpy() for slot in optimizer.variables}
    for slot in optimizer.variables:
        for path, index in stays.items():
            if f"/{path.replace('/', '_')}_" in slot.path:
                values[id(slot)] = cut(slot.numpy(), index)
    for part in parts:
        for number, variable in enumerate(part._trainable_variables):
            index = stays[variable.path]
            if isinstance(part, optimizers.Adafactor) and len(index) > 1:
                r, c = part._r[number], part._c[number]
                values[id(r)] = cut(r.numpy(), index[:-1])
                values[id(c)] = cut(c.numpy(), (*index[:-2], index[-1]))
            if isinstance(part, Doubled):
                first, turned = part.first[number], part.turned[number]
                values[id(first)] = cut(first.numpy(), index[:1])
                values[id(turned)] = cut(turned.numpy(), (slice(None), *index[::-1]))
    return values


def prune(model: keras.Model) -> None:
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    for group in graph.groups:
        if group.name in KEPT:
            kept[group.channels] = False
            kept[group.channels[KEPT[group.name]]] = True
    prune_in_place(graph, kept)


def assert_next_step_is_that_of_a_model_built_by_hand(make, steps: int = 3) -> None:
    model = randomise(net(WIDTHS))
    model.compile(make(), "mse")
    for seed in range(steps):
        step(model, seed)
    stays = by_hand(model)
    slim = net({name: len(kept) for name, kept in KEPT.items()})
    slim.compile(make(), "mse")
    slim.optimizer.build(slim.trainable_variables)
    for before, after in zip(model.weights, slim.weights, strict=True):
        after.assign(cut(before.numpy(), stays[before.path]))
    values = cut_slots(model.optimizer, stays)
    for before, after in zip(model.optimizer.variables, slim.optimizer.variables, strict=True):
        after.assign(values[id(before)])

    prune(model)
    for one in (model, slim):
        step(one, steps)
    for mine, other in zip(model.weights, slim.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), 1e-4, 2e-6, err_msg=mine.path)
    pairs = zip(model.optimizer.variables, slim.optimizer.variables, strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(mine.numpy(), other.numpy(), 1e-3, 2e-6, err_msg=mine.path)


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_each_optimizer_goes_on_as_on_a_slim_model_built_by_hand(make):
    assert_next_step_is_that_of_a_model_built_by_hand(lambda: make(0.01))


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_each_optimizer_goes_on_under_loss_scaling(make):
    assert_next_step_is_that_of_a_model_built_by_hand(
        lambda: optimizers.LossScaleOptimizer(make(0.01), 8.0, dynamic_growth_steps=2), steps=1
    )


@pytest.mark.parametrize("make", SETTINGS.values(), ids=SETTINGS)
def test_optimizers_go_on_with_their_settings(make):
    assert_next_step_is_that_of_a_model_built_by_hand(make)


def test_an_optimizer_that_was_built_but_never_stepped_goes_on():
    def make():
        return optimizers.Ftrl(0.1, initial_accumulator_value=0.5)

    model = randomise(net(WIDTHS))
    model.compile(make(), "mse")
    model.optimizer.build(model.trainable_variables)
    prune(model)
    assert int(model.optimizer.iterations) == 0
    slim = net({name: len(kept) for name, kept in KEPT.items()})
    slim.compile(make(), "mse")
    slim.set_weights(model.get_weights())
    step(model)
    step(slim)
    for mine, other in zip(model.weights, slim.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), 1e-4, 2e-6)


def test_an_optimizer_that_was_not_built_stays_unbuilt():
    model = net(WIDTHS)
    model.compile("adam", "mse")
    prune(model)
    assert not model.optimizer.built
    step(model)


def test_settings_changed_after_the_optimizer_was_made_stay():
    model = net(WIDTHS)
    model.compile(optimizers.Adam(0.5), "mse")
    step(model)
    model.optimizer.beta_1 = 0.25
    model.optimizer.learning_rate = 0.125
    prune(model)
    assert model.optimizer.beta_1 == 0.25
    assert float(model.optimizer.learning_rate) == 0.125
    assert int(model.optimizer.iterations) == 1


def test_variables_that_are_not_the_models_keep_their_slots():
    model = net(WIDTHS)
    model.compile(optimizers.Adam(0.5), "mse")
    other = keras.Variable(np.ones((3, 5)), name="of_someone_else")
    variables = [other, *model.trainable_variables]
    model.optimizer.apply([keras.ops.ones_like(v) for v in variables], variables)
    (slot,) = (v for v in model.optimizer.variables if "someone_else_momentum" in v.path)
    before = slot.numpy()
    assert before.all()
    prune(model)
    (slot,) = (v for v in model.optimizer.variables if "someone_else_momentum" in v.path)
    np.testing.assert_array_equal(slot.numpy(), before)
    model.optimizer.apply(
        [keras.ops.ones_like(v) for v in [other, *model.trainable_variables]],
        [other, *model.trainable_variables],
    )


def test_the_optimizers_and_those_in_them_stay_the_same_objects():
    inner = optimizers.Adam()
    model = net(WIDTHS)
    model.compile(optimizers.LossScaleOptimizer(inner), "mse")
    outer = model.optimizer
    step(model)
    prune(model)
    assert model.optimizer is outer
    assert outer.inner_optimizer is inner
    step(model)
    assert int(inner.iterations) == 2


def test_variables_keep_their_paths_which_some_optimizers_read():
    model = net(WIDTHS)
    paths = [variable.path for variable in model.variables]
    prune(model)
    assert [variable.path for variable in model.variables] == paths


def test_a_slot_whose_entries_belong_to_no_known_axis_starts_anew_with_a_warning():
    class Flat(optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.flat = [self.add_variable((int(np.prod(v.shape)),)) for v in variables]

    model = net(WIDTHS)
    model.compile(Flat(0.1), "mse")
    step(model)
    with pytest.warns(UserWarning, match="starts anew"):
        prune(model)
    step(model)


def test_an_optimizer_that_shares_out_by_a_function_can_be_made_again_before_its_first_step():
    before = shared_out_by_a_function()
    after = remade(before)
    assert type(after) is type(before) and not after.built


def test_an_optimizer_without_a_config_of_its_own_is_refused_before_anything_changed():
    class Own(optimizers.SGD):
        def __init__(self, must, **kwargs):
            super().__init__(0.1, **kwargs)

    model = mlp(optimizer=Own(1))
    model.optimizer.build(model.trainable_variables)
    before = model.get_config()
    graph = sgdap.channel_graph(model)
    with pytest.raises(ValueError, match=r"Own can't be made again.*get_config"):
        prune_in_place(graph, random_removal(graph))
    assert model.get_config() == before
