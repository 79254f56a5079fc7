"""The JSON of `/v1`: what bodies may hold and what answers hold.

These types are the API; the OpenAPI document is made from them. Services return values of their own, whose
attributes of the same names are copied here, so a field that is not named here cannot leak. Times are seconds
since the Unix epoch, UTC; ids are opaque.
"""
