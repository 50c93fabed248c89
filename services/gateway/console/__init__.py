"""The console: six pages in front of one pipeline, made by the server, for whoever runs it."""
