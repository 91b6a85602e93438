"""Connection state without packets: what a flow is, TCP's states as data, outside ports."""
