# One command each; every target installs what it needs through ./bootstrap.
PYTHON = .venv/bin/python

.PHONY: test test-windows test-all lint bench soak docs image clean

test:            ## quick tests: no VM, no root, under two minutes
	./bootstrap --test -m "not guest and not vm and not contract and not soak and not wine" tests/unit

test-windows:    ## Windows CPython and QEMU under Wine: containers end to end
	./bootstrap --test -m wine tests/wine

test-all:        ## everything
	./bootstrap --test

lint:            ## style, types (three platforms), import rules
	./bootstrap --test tests/unit/test_house.py

bench:           ## measure, and write docs/benchmarks.md
	./bootstrap --bench

soak:            ## the long rounds
	WHERRY_SOAK=1 ./bootstrap --test tests/soak

docs:            ## write the page of all commands, docs/commands.md
	./bootstrap version >/dev/null
	$(PYTHON) tests/commands_page.py

image:           ## build the VM image for this host
	./bootstrap version >/dev/null
	$(PYTHON) -m wherry_image build

clean:
	rm -rf .venv .cache build dist
