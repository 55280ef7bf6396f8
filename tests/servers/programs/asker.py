"""A worker that lives long: asks with a recipe's `ask` again and again, until it has outlived so many tokens.

`asker.py RECIPE TOKENS CLOCK_SKEW` prints one JSON object: of each generation what was answered, in the order it came;
every failure; and, for a pool, what a connection that it holds all the time has answered in each generation.
"""

import importlib
import json
import sys
import time

import krbrefresh

recipe = importlib.import_module(sys.argv[1])
wanted, clock_skew = int(sys.argv[2]), float(sys.argv[3])
held = recipe.pool.getconn() if hasattr(recipe, "pool") else None
answers: dict[int, list[str]] = {}
failures: list[str] = []
still: dict[int, str] = {}
ends: dict[int, float] = {}
deadline = time.monotonic() + 90
while (outlived := sum(end + clock_skew < time.time() for end in ends.values())) < wanted:
    if time.monotonic() > deadline:
        failures.append(f"only {outlived} tokens outlived in 90 s")
        break
    token = krbrefresh.load()
    generation = token.generation
    try:
        answers.setdefault(generation, []).append(recipe.ask())
        ends[generation] = token.expires
        if held is not None:
            found = held.execute("SELECT principal FROM pg_stat_gssapi WHERE pid = pg_backend_pid()")
            still[generation] = found.fetchone()[0]
            held.commit()
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")
    time.sleep(0.1)
if held is not None:
    recipe.pool.putconn(held)
    recipe.pool.close()
print(json.dumps({"answers": list(answers.values()), "failures": failures, "held": list(still.values())}))
