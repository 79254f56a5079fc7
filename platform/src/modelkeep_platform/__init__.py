"""Server of Modelkeep, a secure multi-tenant model platform."""

__version__ = "0.1.0"
