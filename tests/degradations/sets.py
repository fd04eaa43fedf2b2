"""The published sets of conf/degradation, composed as train.py composes them."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    """The set as a config; overrides as on the command line, from `degradation.` on."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+degradation={name}", *overrides]).degradation


def built(name: str, *overrides: str) -> Any:
    """The set as a Pipeline or Branches."""
    return instantiate(composed(name, *overrides), _convert_="all")
