"""Child processes that touch tenants' plaintext: started with an empty environment, limited, spoken to in frames."""
