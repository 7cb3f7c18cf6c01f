"""The settings: `model` says what can be set, `load` reads it."""

from service.settings.load import CONFIG, SettingsFaults, load_settings
from service.settings.model import ApiKey, Issuer, Settings

__all__ = ["CONFIG", "ApiKey", "Issuer", "Settings", "SettingsFaults", "load_settings"]
