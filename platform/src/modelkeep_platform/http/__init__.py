"""REST: translates requests to service calls and answers back; holds no rules."""
