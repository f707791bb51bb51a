# Every verb is one script; `python3 scripts/<verb>.py --help` tells its options.
#   PROFILE=name         env/name.env (a,b: two models, one gateway; up, roll, build, check, doctor)
#                                                   ENV_FILE="a.env b.env"   further files over it, last wins
#   SET="A=1 B=2 3"      single values over all     PROJECT=name             another deployment beside this one
#   MONITORING=on               with Prometheus, alerts and the page /status
#   JSON=1               answers for machines       FLATTEN=file             check: write the env file to hand over
#   GPU=name             a GPU of env/gpus.yaml instead of this host's (check, doctor, fit, profiles)
# BASE_IMAGE, BUILD_CA_BUNDLE, WHEELHOUSE and HOST_SETUP may be given here too: `make up HOST_SETUP=never`.
PYTHON ?= python3
.DEFAULT_GOAL := help

project := $(if $(PROJECT),--project '$(PROJECT)')
json := $(if $(JSON),--json)
gpu := $(if $(GPU),--gpu '$(GPU)')
# By the environment and not in the line: a value may hold blanks, quotes and braces. It ends where the next KEY= starts.
export SET
sets := $(if $(SET),--set-all "$$SET")
deployment := $(if $(PROFILE),--profile '$(PROFILE)') $(foreach f,$(ENV_FILE),--env-file '$(f)') $(sets) $(project) $(if $(MONITORING),--set 'HOST_MONITORING=$(MONITORING)')

.PHONY: help up down restart warm roll rollback keys logs status top report check doctor build smoke soak bench bench-apply bench-compare fit profiles optimizations model handoff swarm receive k8s test lint lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up:  ## check everything, build what is missing, start, and wait until the model answers
	@$(PYTHON) scripts/up.py $(deployment) $(json)

down:  ## drain and stop (VOLUMES=1 removes the cache too)
	@$(PYTHON) scripts/down.py $(project) $(if $(VOLUMES),--volumes)

restart:  ## drain and restart the engines, one after another
	@$(PYTHON) scripts/restart.py $(project)

warm:  ## fill the engine's caches (compiled kernels, graphs) by a start that serves nobody; refuses where the card is in use
	@$(PYTHON) scripts/warm.py $(deployment) $(json)

roll:  ## replace every engine, one after another, without a gap (HOST_REPLICAS=2 or more)
	@$(PYTHON) scripts/roll.py $(deployment) $(json)

rollback:  ## back to the version that ran before
	@$(PYTHON) scripts/rollback.py $(project)

keys:  ## the API keys by name; ADD=name makes one (METRICS_ONLY=1: for /metrics alone; CLASS=batch: its requests come last), REVOKE=name takes it away, while the gateway serves
	@$(PYTHON) scripts/keys.py $(deployment) $(if $(ADD),--add '$(ADD)') $(if $(METRICS_ONLY),--metrics-only) $(if $(CLASS),--class '$(CLASS)') $(if $(REVOKE),--revoke '$(REVOKE)') $(json)

logs:  ## follow what the services print (REQUEST=id: all that they printed about one request)
	@$(PYTHON) scripts/logs.py $(project) $(if $(REQUEST),--request '$(REQUEST)')

status:  ## one table of what runs (STACK=name: of a Swarm stack)
	@$(PYTHON) scripts/status.py $(if $(STACK),--stack '$(STACK)',$(project)) $(json)

top:  ## live: requests, tokens/s, latencies of the last minute, KV cache, GPU (ONCE=1: one picture)
	@$(PYTHON) scripts/top.py $(project) $(if $(ONCE),--once) $(json)

report:  ## one archive for a bug report, without keys and passwords (OUT=file.tar.gz)
	@$(PYTHON) scripts/report.py $(project) $(if $(OUT),--out '$(OUT)')

check:  ## the command line, environment and origin of every value, checked against the engine; no Docker needed (but DEEP=1: asks the image)
	@$(PYTHON) scripts/check.py $(deployment) $(gpu) $(if $(DEEP),--deep) $(if $(FLATTEN),--flatten '$(FLATTEN)') $(json)

doctor:  ## can this host run it? read-only
	@$(PYTHON) scripts/doctor.py $(deployment) $(gpu) $(json)

build:  ## the images that the profile needs (FORCE=1: anew, with the distribution's updates)
	@$(PYTHON) scripts/build.py $(deployment) $(if $(FORCE),--force) $(json)

smoke:  ## does the running service answer as an API client expects? (URL=http://HOST:PORT KEY_FILE=: any other)
	@$(PYTHON) scripts/smoke.py $(if $(URL),--url '$(URL)' $(if $(KEY_FILE),--api-key-file '$(KEY_FILE)') $(if $(CA_FILE),--ca-file '$(CA_FILE)'),$(project)) $(json)

soak:  ## use the running service for long, in every way at once: does anything grow, slow down or go wrong? (MINUTES=10 CLIENTS=8)
	@$(PYTHON) scripts/soak.py $(project) $(if $(MINUTES),--minutes '$(MINUTES)') $(if $(CLIENTS),--clients '$(CLIENTS)') $(json)

bench:  ## measure a suite of env/matrix.yaml (SUITE= CELL="a b" WORKLOAD= ROUNDS= REPEATS= RUN= RUNTIME=process CARD_GIB= SIDE_BY_SIDE=; LIST=1 shows all)
	@$(PYTHON) scripts/bench.py $(if $(LIST),--list) $(if $(REPORT),--report '$(REPORT)') $(if $(SUITE),--suite '$(SUITE)') \
	  $(foreach c,$(CELL),--cell '$(c)') $(foreach w,$(WORKLOAD),--workload '$(w)') $(if $(ROUNDS),--rounds '$(ROUNDS)') \
	  $(if $(REPEATS),--repeats '$(REPEATS)') $(if $(RUN),--run '$(RUN)') $(if $(RUNTIME),--runtime '$(RUNTIME)') \
	  $(if $(CARD_GIB),--card-gib '$(CARD_GIB)') $(if $(SIDE_BY_SIDE),--side-by-side '$(SIDE_BY_SIDE)') \
	  $(foreach f,$(ENV_FILE),--env-file '$(f)') $(sets) $(json)

bench-apply:  ## write what a run recommends as env/NAME.env, the measured reason beside each line (RUN=name NAME=name)
	@$(PYTHON) scripts/bench_apply.py '$(RUN)' $(if $(NAME),--name '$(NAME)') $(json)

bench-compare:  ## is run B slower than run A beyond noise? exit 6 (A=run B=run)
	@$(PYTHON) scripts/bench_compare.py '$(A)' '$(B)' $(json)

profiles:  ## all profiles with the model's fit, and the one that is chosen for this host (or GPU=rtx-5090)
	@$(PYTHON) scripts/profiles.py $(gpu) $(foreach f,$(ENV_FILE),--env-file '$(f)') $(sets) $(json)

optimizations:  ## what each setting is worth (VERDICT=inert, NAME=--swap-space); AUDIT=1 proves it on the built image (IMAGE=, LIBRARY=)
	@$(PYTHON) scripts/optimizations.py $(if $(AUDIT),audit $(if $(IMAGE),--image '$(IMAGE)') $(if $(LIBRARY),--library '$(LIBRARY)'),$\
	  $(if $(NAME),explain '$(NAME)',list $(if $(VERDICT),--verdict '$(VERDICT)'))) $(json)

fit:  ## will the model start, and how many tokens fit? (MODEL=dir GPU=rtx-5090)
	@$(PYTHON) scripts/fit.py $(if $(MODEL),'$(MODEL)') $(deployment) $(gpu) $(json)

model:  ## fetch a model (NAME=org/model) or check a local one (FROM=dir); WRITE=1 sets MODEL_DIR in env/site.env
	@$(PYTHON) scripts/model.py $(if $(NAME),--name '$(NAME)') $(if $(FROM),--from '$(FROM)') $(if $(REVISION),--revision '$(REVISION)') \
	  $(if $(INTO),--into '$(INTO)') $(if $(TOKEN_FILE),--token-file '$(TOKEN_FILE)') $(if $(ENDPOINT),--endpoint '$(ENDPOINT)') \
	  $(if $(OFFLINE),--offline) $(if $(WRITE),--write) $(json)

handoff:  ## one folder or archive that runs the profile elsewhere with Docker alone (OUT=dir or file.tar.gz, WITH_IMAGES=1)
	@$(PYTHON) scripts/handoff.py $(deployment) $(gpu) $(if $(OUT),--out '$(OUT)') $(if $(WITH_IMAGES),--with-images) $(json)

swarm:  ## a stack for Docker Swarm from the same env files, and the page of commands (OUT=dir)
	@$(PYTHON) scripts/swarm.py $(deployment) $(gpu) $(if $(OUT),--out '$(OUT)') $(json)

receive:  ## verify a handoff, load its images, check this host and start it (FILE=, INTO=, NO_START=1, ACCEPT_COMPOSE=1, SET="MODEL_DIR=…")
	@$(PYTHON) scripts/receive.py $(if $(FILE),'$(FILE)') $(if $(INTO),--into '$(INTO)') $(sets) $(project) \
	  $(if $(ACCEPT_COMPOSE),--accept-compose) $(if $(NO_START),--no-start) $(json)

k8s:  ## Kubernetes manifests of the profile (OUT=dir GPU=rtx-5090), never run on a cluster
	@$(PYTHON) scripts/k8s.py $(deployment) $(gpu) $(if $(OUT),--out '$(OUT)') $(json)

test: lint  ## everything that CI holds, against real Docker and real vLLM on the CPU
	@.venv/bin/python -m pytest --numprocesses 4 tests/unit tests/process
	@.venv/bin/python -m pytest tests/contract tests/e2e tests/fault -m 'not long'
	@.venv/bin/python -m pytest tests/swarm -m 'not long'
	@.venv/bin/python -m pytest tests/bench -m 'not long'

lint:  ## ruff, mypy --strict, import-linter, yamllint, shellcheck, hadolint
	@$(PYTHON) scripts/bundle/venv.py requirements-dev.lock
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy scripts healthchecks docker/engine docker/model docker/monitoring tests
	@PYTHONPATH=scripts .venv/bin/lint-imports --no-logo
	@.venv/bin/python -m yamllint --strict .
	@.venv/bin/shellcheck .ci/run scripts/completion.sh docker/engine/*.sh docker/engine/proofs/*.sh
	@.venv/bin/hadolint docker/engine/Dockerfile docker/gateway/Dockerfile docker/monitoring/Dockerfile

lock:  ## resolve the dependencies anew (needs uv)
	@for name in requirements requirements-bench requirements-dev; do uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate $$name.in --output-file $$name.lock; done
