"""A trained model behind HTTP: the OpenAI schema, and translation, answers and search."""
