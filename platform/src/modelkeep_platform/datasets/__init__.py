"""Datasets: declared, validated cell by cell, sealed, and given to training workers alone."""
