"""Scenes made from the bundled emoji: images with exact captions, boxes and labels of every pixel."""

from .scenes import Scenes
from .settings import SceneSettings
from .table import load_scenes


__all__ = ["SceneSettings", "Scenes", "load_scenes"]
