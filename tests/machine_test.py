"""What a config's engine and mesh come to."""

from types import SimpleNamespace

import pytest

from cai_jax import machine
from cai_jax.settings import ConfigError, EngineSize, MeshShape


def test_an_engine_takes_every_setting(monkeypatch, model):
    monkeypatch.setattr(machine, "Engine", lambda *given: given)
    given = machine.engine_of(EngineSize(3, 64, 0.5, True), model)
    assert given == (model, 3, 64, 500_000_000, True, None)
    given = machine.engine_of(EngineSize(3, 64, 0.0, False), model, print)
    assert given[3:] == (None, False, print)


def test_one_device_is_no_mesh(monkeypatch):
    assert machine.mesh_of_shape(MeshShape(1, 1, -1, 1, 1)) is None
    two = SimpleNamespace(size=2)
    monkeypatch.setattr(machine, "make_mesh", lambda shape: two)
    assert machine.mesh_of_shape(MeshShape(1, 1, -1, 1, 1)) is two


def test_a_batch_divides_over_slice_data_and_fsdp():
    shape = {"slice": 1, "data": 2, "fsdp": 3, "sequence": 7, "tensor": 5}
    six, twelve = (SimpleNamespace(shape=shape | {"slice": n}) for n in (1, 2))
    machine.check_batch("ppo.batch_size", 8, 1, None)
    machine.check_batch("ppo.batch_size", 12, 1, six)
    with pytest.raises(ConfigError, match=r"config.ppo.batch_size is 8.*data x fsdp = 6 devices"):
        machine.check_batch("ppo.batch_size", 8, 1, six)
    with pytest.raises(ConfigError, match="slice x data x fsdp = 12 devices"):
        machine.check_batch("ppo.batch_size", 6, 1, twelve)


def test_a_batch_divides_into_microbatches_and_each_over_the_mesh():
    four = SimpleNamespace(shape={"slice": 1, "data": 4, "fsdp": 1, "sequence": 1, "tensor": 1})
    machine.check_batch("dpo.batch_size", 8, 4, None)
    machine.check_batch("dpo.batch_size", 8, 2, four)
    with pytest.raises(ConfigError, match=r"is 8, .* config.dpo.microbatches = 3; change one"):
        machine.check_batch("dpo.batch_size", 8, 3, None)
    with pytest.raises(ConfigError, match="is 8 in 4 microbatches, which does not divide over"):
        machine.check_batch("dpo.batch_size", 8, 4, four)
