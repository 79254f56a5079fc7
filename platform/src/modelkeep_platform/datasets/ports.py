"""What datasets need of other rooms."""

from typing import Protocol

from modelkeep_platform.core.ids import TenantId


class TenantDirectory(Protocol):
    """Translates between slugs and ids."""

    def id_of(self, slug: str) -> TenantId | None:
        """Return the id of the tenant with this slug, or None."""

    def slug_of(self, tenant: TenantId) -> str:
        """Return the tenant's slug."""
