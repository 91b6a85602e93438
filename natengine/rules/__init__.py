"""Policy as values: rules, chains, what they mean for a packet, and how often they matched."""
