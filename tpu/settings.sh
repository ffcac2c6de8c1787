# shellcheck shell=bash disable=SC2034
# What to rent and what to run, in one place. Any of it can be set in the environment instead:
# NAME=try ZONE=us-east5-b tpu/launch

NAME=${NAME:-cai}                           # of the queued resource; its nodes are called after it
PROJECT=${PROJECT:-$(gcloud config get-value project 2>/dev/null || true)}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-64}                  # as the cloud names it; `cai-jax plan` says v5e-64
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}     # v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5, v4: tpu-ubuntu2204-base
SLICES=${SLICES:-1}                         # more of the same TYPE, joined by the network
PROVISION=${PROVISION:-spot}                # spot, reserved or on-demand

CONFIG=${CONFIG:-experiments/llama3_8b.py}
WORKDIR=${WORKDIR:-}                        # a folder that all hosts share, such as a mounted bucket, or gs://my-bucket/runs/x
ARGS=${ARGS:-}                              # more for cai-jax run, such as --config.seed=1
MOUNT=${MOUNT:-}                            # a bucket to mount at ~/bucket on every host, such as my-bucket
PACKAGES=${PACKAGES:-.[tpu]}                # what pip installs of this project

RESTARTS=${RESTARTS:-20}                    # after preemptions and dead hosts
POLL=${POLL:-30}                            # seconds between looks at a request that waits
