// SPDX-License-Identifier: Apache-2.0

package policy

import (
	_ "embed" // for default.yaml
	"fmt"
	"slices"
	"strings"
)

//go:embed default.yaml
var defaultYAML []byte

// DefaultName is the file name in the errors of Default.
const DefaultName = "default.yaml"

// defaultClasses are what the embedded policy drops if the model knows them:
// programs made to pass unseen. What administrators use to get in and networks
// to be joined (ssh, openvpn, wireguard, socks5) has to be named by somebody who
// knows that it is not needed here; so has trojan, which is TLS in what is
// captured of it and experimental in every model so far.
var defaultClasses = []string{"shadowsocks", "v2ray", "vless", "obfs4"}

// DefaultYAML returns the text of the embedded policy for a model with these
// labels.
func DefaultYAML(labels []string) string {
	classes := slices.DeleteFunc(slices.Clone(defaultClasses), func(s string) bool { return !slices.Contains(labels, s) })
	return strings.Replace(string(defaultYAML), "CLASSES", strings.Join(classes, ", "), 1)
}

// Default returns the embedded policy for the model. It is an *Error when the
// model has none of the classes that the policy is about.
func Default(model *Model) (*Policy, error) {
	if !slices.ContainsFunc(defaultClasses, func(s string) bool { return slices.Contains(model.Labels, s) }) {
		return nil, &Error{File: DefaultName, Line: 1, Column: 1, Msg: fmt.Sprintf(
			"the built-in policy is about %s, and the model has none of them (it has %s); write a policy of your own",
			strings.Join(defaultClasses, ", "), someOf(model.classes()))}
	}
	return Parse(DefaultName, []byte(DefaultYAML(model.Labels)), model)
}
