// The version of KEDA whose admission webhook `make test-cluster` runs: `go build github.com/kedacore/keda/v2/cmd/webhooks`.
package keda
