"""Black-box tests of what the RFCs want of a NAT; docs/conformance.md is made of their results."""
