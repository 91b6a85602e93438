"""The program: the only place that joins the engine and the adapters."""
