"""Decides every call: Cedar policies, grants between tenants, decisions with their reasons."""
