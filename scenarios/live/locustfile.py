"""Two kinds of users, as a team has them for Locust already; nothing here knows of survive."""

import os

from locust import FastHttpUser, HttpUser, SequentialTaskSet, between, constant, tag, task

KEY = {"authorization": f"Bearer {os.environ['SURVIVE_REFERENCE_KEY']}"}
ASK = {"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello?"}]}


class Look(SequentialTaskSet):
    """Searches, then asks about what was found."""

    @task
    def search(self):
        self.client.get("/v1/search?q=gpu", headers=KEY, name="search")

    @task
    def ask(self):
        with self.client.post(
            "/v1/chat/completions", json=ASK, headers=KEY, name="ask", catch_response=True
        ) as answer:
            if answer.status_code == 200 and not answer.json().get("choices"):
                answer.failure("no choices")


class Reader(HttpUser):
    """One in four."""

    wait_time = between(0.2, 0.6)
    tasks = [Look]

    def on_start(self):
        self.client.get("/healthz", name="hello")


class Searcher(FastHttpUser):
    """Three in four."""

    weight = 3
    wait_time = constant(0.3)

    @tag("search")
    @task
    def search(self):
        self.client.get("/v1/search?q=rack", headers=KEY, name="search")
