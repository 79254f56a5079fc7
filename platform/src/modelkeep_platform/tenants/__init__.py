"""The lifecycle of tenants: creation, enrolment, suspension; combines identity, keys, access and audit."""
