"""What both clients share: flows of requests without I/O, and the two thin drivers that perform them."""
