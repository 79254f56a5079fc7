"""Backup while serving, restore with training frozen, and the comparison that lets it go on."""

from modelkeep_platform.app.backup.comparing import Compared, compare, newest_checkpoint
from modelkeep_platform.app.backup.restoring import Restored, restore
from modelkeep_platform.app.backup.writing import BackedUp, backup

__all__ = ["BackedUp", "Compared", "Restored", "backup", "compare", "newest_checkpoint", "restore"]
