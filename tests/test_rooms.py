import pytest

from deepscan_jax import rooms


@pytest.mark.parametrize("name", ["experiments.default", "datasets.media_builder", "launch"])
def test_a_room_is_found_wherever_it_lies(name):
  assert rooms.import_room(name).__name__ in (name, f"deepscan_jax.{name}")


def test_a_room_that_is_not_there_is_named():
  with pytest.raises(ModuleNotFoundError, match=r"experiments\.nothing"):
    rooms.import_room("experiments.nothing")


def test_a_room_that_lacks_something_says_what(tmp_path, monkeypatch):
  import deepscan_jax.experiments

  (tmp_path / "broken.py").write_text("import a_package_that_nobody_has\n")
  monkeypatch.setattr(
    deepscan_jax.experiments, "__path__", [*deepscan_jax.experiments.__path__, str(tmp_path)]
  )
  with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
    rooms.import_room("experiments.broken")
