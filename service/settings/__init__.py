"""The settings: `model` declares them, `load` reads them."""

from service.settings.load import CONFIG, SettingsFaults, load_settings
from service.settings.model import ApiKey, Issuer, Settings

__all__ = ["CONFIG", "ApiKey", "Issuer", "Settings", "SettingsFaults", "load_settings"]
