"""From a bearer token to a caller: verified and looked up, and from memory, against the signature check alone."""

from pathlib import Path

from joserfc import jws
from joserfc.jwk import KeySet

from benchmarks.harness import Figure, each_us, interleave
from fakes.access import quick_database
from fakes.core import FakeClock, FakeEpoch, FakeRecorder
from fakes.identity import REQUEST, IdentityRoom
from modelkeep_platform.identity.tokens import ALGORITHMS

TITLE = "Tokens"


def measure(folder: Path) -> list[Figure]:
    """Measure `Authenticator.authenticate` on a token of a service account."""
    database = quick_database(folder / "platform.db")
    room = IdentityRoom(database, FakeClock(), FakeRecorder())
    admin, _ = room.enrolled()
    room.clock.advance(2)
    token = room.app_token(room.account(admin))
    # The fake that reads the database each time stands in for a server's epoch in tests; a server keeps it in memory.
    room.epoch = FakeEpoch()  # type: ignore[assignment]
    authenticator = room.new_authenticator()
    keys = KeySet.import_key_set({"keys": list(room.issuer.jwks()["keys"])})

    def uncached() -> object:
        authenticator._known._entries.clear()
        return authenticator.authenticate(token, REQUEST)

    def signature() -> object:
        return jws.deserialize_compact(token, keys, algorithms=list(ALGORITHMS))

    checked, bare = interleave(each_us(uncached, times=100), each_us(signature, times=200))
    warm, _ = interleave(each_us(lambda: authenticator.cached(token, REQUEST), times=5000), lambda: 1.0)
    database.close()
    one = "the signature alone, key parsed before"
    return [
        Figure(
            name="verified, tenant, member and denials looked up", unit="µs", ours=checked, against=one, theirs=bare
        ),
        Figure(name="verified before in this epoch", unit="µs", ours=warm, against=one, theirs=bare),
    ]
