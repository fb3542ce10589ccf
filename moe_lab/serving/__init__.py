"""One resident model for many clients over HTTP: the engine in a thread, requests as OpenAI's clients send them."""
