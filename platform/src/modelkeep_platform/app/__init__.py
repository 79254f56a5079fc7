"""The composition root: settings, and the one place where everything is wired."""
