"""Who is calling: token verification, the embedded issuer, membership and roles."""
