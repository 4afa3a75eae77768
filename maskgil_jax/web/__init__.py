"""A server for people and programs: an engine that draws requests in shared batches, an HTTP API, a web page."""
