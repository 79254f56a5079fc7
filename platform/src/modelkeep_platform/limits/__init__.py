"""Limits for each tenant and principal: how many requests a minute, how many at once."""
