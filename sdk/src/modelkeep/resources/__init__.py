"""What a client offers, one noun a file. Every method is a flow, performed by the client's driver."""
