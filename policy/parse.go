// SPDX-License-Identifier: Apache-2.0

package policy

import (
	_ "embed" // for default.yaml
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/nearest"
)

// Bounds of a policy file.
const (
	// MaxFileBytes bounds the file. A thousand rules with a dozen exceptions
	// each fit in.
	MaxFileBytes = 256 << 10
	// MinTTL is the shortest block: the kernel's clock is read in seconds by
	// whoever looks at the map, and a shorter block stops nothing.
	MinTTL = time.Second
	// MaxTTL is the longest block, a year: a mistyped unit should not block a
	// server for ever.
	MaxTTL = 365 * 24 * time.Hour

	// maxDepth bounds nesting; a valid file nests six deep (file, rules,
	// rule, except, entry, ports). The YAML library takes quadratic time in
	// the depth.
	maxDepth = 16

	// maxKeys bounds the keys that follow one another without the beginning
	// of an entry between them; a valid file has a dozen. The library takes
	// quadratic time in the keys of a mapping.
	maxKeys = 64
)

// Error is a mistake in a policy file.
type Error struct {
	File   string
	Line   int // from 1
	Column int // from 1, in characters
	Msg    string
}

// Error returns one line, FILE:LINE:COLUMN: what is wrong and what to do.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

//go:embed default.yaml
var defaultYAML []byte

// Model is what a policy has to know of the model that decides beside it.
type Model struct {
	// Labels are the classes that the model tells apart, flow.Background
	// included.
	Labels []string
	// Thresholds gives for each of them but flow.Background the probability, 0
	// to 1, that a rule over this class alone asks for when it has no
	// min_confidence.
	Thresholds map[string]float64
	// AnyThreshold is the same for a rule over several classes: the
	// probability that the flow is one of them.
	AnyThreshold float64
	// Unknown says that the model may give the outcome flow.Unknown.
	Unknown bool
}

// classes returns what a rule can name, without flow.Unknown.
func (m *Model) classes() []string {
	return slices.DeleteFunc(slices.Clone(m.Labels), func(s string) bool { return s == flow.Background })
}

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

// Load reads and parses the policy file at path. The error is an *Error where
// the text is wrong, and else wraps the one of the file system.
func Load(path string, model *Model) (*Policy, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return Parse(path, data, model)
}

// Parse parses the text of a policy file. Name stands for the file in errors.
// The rules may name the classes of model, and take from it the min_confidence
// that they lack; with nil they may name any class, but need a min_confidence.
// Every error is an *Error.
func Parse(name string, data []byte, model *Model) (*Policy, error) {
	d := &decoder{file: oneLine(name), model: model}
	body, err := d.read(data)
	if err != nil {
		return nil, err
	}
	return d.policy(body)
}

// decoder turns the syntax tree into a Policy. It works on the tree and not
// on structs, because every mistake, missing keys included, is to be shown
// with its place.
type decoder struct {
	file  string
	model *Model // nil: not known
}

func (d *decoder) errorAt(line, column int, format string, args ...any) error {
	return &Error{File: d.file, Line: max(line, 1), Column: max(column, 1), Msg: oneLine(fmt.Sprintf(format, args...))}
}

func (d *decoder) errorOn(t *token.Token, format string, args ...any) error {
	if t == nil || t.Position == nil {
		return d.errorAt(1, 1, format, args...)
	}
	return d.errorAt(t.Position.Line, t.Position.Column, format, args...)
}

func (d *decoder) errorIn(n ast.Node, format string, args ...any) error {
	return d.errorOn(start(n), format, args...)
}

// read returns the only document of data.
func (d *decoder) read(data []byte) (ast.Node, error) {
	if len(data) > MaxFileBytes {
		return nil, d.errorAt(1, 1, "file is larger than %d KiB; split the policy or name networks instead of single addresses", MaxFileBytes>>10)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	// The library takes a lone carriage return for a line break at some
	// places only; let there be one kind of line break.
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if err := d.checkText(text); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(text)
	if err := d.checkTokens(tokens); err != nil {
		return nil, err
	}
	// Duplicate keys are found below, with a better message.
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, d.errorOn(syntax.Token, "not valid YAML: %s", syntax.Message)
		}
		return nil, d.errorAt(1, 1, "not valid YAML: %v", err)
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if _, empty := doc.Body.(*ast.CommentGroupNode); empty {
			continue
		}
		if body != nil {
			return nil, d.errorIn(doc.Body, "a second document begins here; a policy file holds one, take the \"---\" out")
		}
		body = doc.Body
	}
	if body == nil {
		return nil, d.errorAt(1, 1, "file holds no policy; write at least \"mode: monitor\"")
	}
	return body, nil
}

// checkText refuses what YAML does not allow but the library lets through.
func (d *decoder) checkText(text string) error {
	line, column := 1, 1
	for i, r := range text {
		switch {
		case r == '\n':
			line, column = line+1, 1
			continue
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			return d.errorAt(line, column, "byte 0x%02x is not UTF-8; save the file as UTF-8", text[i])
		case r != '\t' && (unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff'):
			return d.errorAt(line, column, "control character %U; take it out", r)
		}
		column++
	}
	return nil
}

// checkTokens refuses deep nesting before the parser recurses into it, and the
// parts of YAML that let a short text stand for a long one or for another
// type.
func (d *decoder) checkTokens(tokens token.Tokens) error {
	flowDepth, entries, line, keys := 0, 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return d.errorOn(t, "anchors, aliases and merge keys are not part of a policy file; write the value out")
		case token.TagType:
			return d.errorOn(t, "tags are not part of a policy file; take %s out", quote(t.Value))
		case token.DirectiveType:
			return d.errorOn(t, "directives are not part of a policy file; take the line out")
		case token.MappingKeyType:
			return d.errorOn(t, "\"?\" keys are not part of a policy file; write \"key: value\"")
		case token.MappingStartType:
			flowDepth++
			keys = 0
		case token.SequenceStartType:
			flowDepth++
		case token.MappingEndType, token.SequenceEndType:
			flowDepth--
		case token.SequenceEntryType:
			entries++
			keys = 0
		case token.MappingValueType:
			keys++
		}
		if keys > maxKeys {
			return d.errorOn(t, "too many keys in a row; a policy has the keys mode, one_hook, allow and rules, and a rule at most nine")
		}
		if flowDepth > maxDepth || entries > maxDepth {
			return d.errorOn(t, "nested too deep; a policy file nests no deeper than %d", maxDepth)
		}
	}
	return nil
}

// start returns the first token of n, nil if there is none.
func start(n ast.Node) *token.Token {
	switch n := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return start(n.Values[0])
		}
		return n.Start
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return n.GetToken()
}

// typeName says what n is, for messages.
func typeName(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.StringNode:
		return "text"
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.BoolNode:
		return "true or false"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return "something else"
}

// entry is one key of a mapping with its value.
type entry struct {
	key   *token.Token
	value ast.Node
}

// place returns where to show a mistake of the value: the value itself, or
// the key when there is nothing behind it.
func (e entry) place() *token.Token {
	if _, empty := e.value.(*ast.NullNode); empty || e.value == nil {
		return e.key
	}
	return start(e.value)
}

// placeOf is place for n, which is the value or an element of it.
func (e entry) placeOf(n ast.Node) *token.Token {
	if n == e.value {
		return e.place()
	}
	return start(n)
}

// mapping returns the entries of n by key. What names n in errors.
func (d *decoder) mapping(n ast.Node, what string, keys ...string) (map[string]entry, error) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, d.errorIn(n, "%s has to be a mapping with the keys %s, but is %s", what, strings.Join(keys, ", "), typeName(n))
	}
	found := make(map[string]entry, len(values))
	for _, v := range values {
		at := v.Key.GetToken()
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return nil, d.errorOn(at, "key %s in %s has to be one of %s", quote(at.Value), what, strings.Join(keys, ", "))
		}
		if !slices.Contains(keys, key.Value) {
			return nil, d.errorOn(at, "unknown key %s in %s%s; known are %s",
				quote(key.Value), what, didYouMean(key.Value, keys), strings.Join(keys, ", "))
		}
		if first, twice := found[key.Value]; twice {
			return nil, d.errorOn(at, "key %s is given twice in %s, first in line %d; keep one of them",
				quote(key.Value), what, first.key.Position.Line)
		}
		found[key.Value] = entry{at, v.Value}
	}
	return found, nil
}

// list returns the elements of a sequence.
func (d *decoder) list(e entry, what string) ([]ast.Node, error) {
	if seq, ok := e.value.(*ast.SequenceNode); ok {
		return seq.Values, nil
	}
	return nil, d.errorOn(e.place(), "%s has to be a list, but is %s; begin each of its entries with \"- \"", what, typeName(e.value))
}

// oneOrMore returns the elements of a sequence, or a single value as a list of
// one. An empty list is an error.
func (d *decoder) oneOrMore(e entry, what string) ([]ast.Node, error) {
	seq, ok := e.value.(*ast.SequenceNode)
	switch {
	case !ok:
		return []ast.Node{e.value}, nil
	case len(seq.Values) == 0:
		return nil, d.errorOn(e.place(), "%s is an empty list; name at least one", what)
	}
	return seq.Values, nil
}

// text returns the value of a string.
func (d *decoder) text(at *token.Token, n ast.Node, what, example string) (string, error) {
	if s, ok := n.(*ast.StringNode); ok {
		return s.Value, nil
	}
	return "", d.errorOn(at, "%s has to be text such as %s, but is %s", what, example, typeName(n))
}

func (d *decoder) policy(n ast.Node) (*Policy, error) {
	keys, err := d.mapping(n, "the policy", "mode", "one_hook", "allow", "rules")
	if err != nil {
		return nil, err
	}
	p := &Policy{}
	if e, ok := keys["one_hook"]; ok {
		if p.OneHook, err = d.boolean(e, "one_hook"); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["mode"]; ok {
		mode, err := d.text(e.place(), e.value, "mode", "monitor")
		if err != nil {
			return nil, err
		}
		if p.Mode, err = ParseMode(mode); err != nil {
			return nil, d.errorOn(e.place(), "%v", err)
		}
	}
	if e, ok := keys["allow"]; ok {
		if p.Allow, err = d.matches(e, "allow"); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["rules"]; ok {
		if p.Rules, err = d.rules(e); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (d *decoder) matches(e entry, what string) ([]Match, error) {
	nodes, err := d.list(e, what)
	if err != nil {
		return nil, err
	}
	var matches []Match
	for _, n := range nodes {
		m, err := d.match(n, what)
		if err != nil {
			return nil, err
		}
		matches = append(matches, m)
	}
	return matches, nil
}

func (d *decoder) match(n ast.Node, list string) (m Match, err error) {
	what := "an entry of " + list
	keys, err := d.mapping(n, what, "cidr", "port", "side")
	if err != nil {
		return m, err
	}
	cidr, hasCIDR := keys["cidr"]
	port, hasPort := keys["port"]
	side, hasSide := keys["side"]
	if !hasCIDR && !hasPort {
		return m, d.errorIn(n, "%s needs a cidr or a port", what)
	}
	if hasCIDR {
		if m.Prefix, err = d.cidr(cidr); err != nil {
			return m, err
		}
	}
	if hasPort {
		if m.Ports, err = d.ports(port); err != nil {
			return m, err
		}
	}
	if hasSide {
		if !hasCIDR {
			return m, d.errorOn(side.key, "side says which address the cidr is compared with, but there is no cidr; add one or take side out")
		}
		word, err := d.text(side.place(), side.value, "side", "responder")
		if err != nil {
			return m, err
		}
		switch word {
		case "any":
		case "initiator":
			m.Side = InitiatorSide
		case "responder":
			m.Side = ResponderSide
		default:
			known := []string{"initiator", "responder", "any"}
			return m, d.errorOn(side.place(), "unknown side %s%s; write initiator, responder or any", quote(word), didYouMean(word, known))
		}
	}
	m.text = m.String()
	return m, nil
}

func (d *decoder) cidr(e entry) (netip.Prefix, error) {
	s, err := d.text(e.place(), e.value, "cidr", "192.0.2.0/24")
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			return p, d.errorOn(e.place(), "cidr %s has no prefix length; for this one address write %s/%d", quote(s), s, addr.BitLen())
		}
		return p, d.errorOn(e.place(), "cidr %s is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32", quote(s))
	}
	if p != p.Masked() {
		return p, d.errorOn(e.place(), "cidr %s has host bits set; the network is %s", quote(s), p.Masked())
	}
	if addr := p.Addr(); addr.Is4In6() {
		// Flows carry IPv4 addresses unmapped. A shorter prefix has host bits.
		return netip.PrefixFrom(addr.Unmap(), p.Bits()-96), nil
	}
	return p, nil
}

func (d *decoder) ports(e entry) ([]PortRange, error) {
	nodes, err := d.oneOrMore(e, "port")
	if err != nil {
		return nil, err
	}
	var ports []PortRange
	for _, n := range nodes {
		at := e.placeOf(n)
		var r PortRange
		switch n.(type) {
		case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode:
			// The text as it was written: YAML would read 0700 as octal.
			text := at.Value
			first, last, isRange := strings.Cut(text, "-")
			if !isRange {
				last = first
			}
			var okFirst, okLast bool
			r.First, okFirst = parsePort(first)
			r.Last, okLast = parsePort(last)
			if !okFirst || !okLast {
				return nil, d.errorOn(at, "port %s is not a port; write 1 to 65535, or a range such as 8000-8100", quote(text))
			}
			if r.First > r.Last {
				return nil, d.errorOn(at, "port range %s is backwards; write %d-%d", quote(text), r.Last, r.First)
			}
		default:
			return nil, d.errorOn(at, "port has to be a number, a range such as 8000-8100 or a list of them, but is %s", typeName(n))
		}
		ports = append(ports, r)
	}
	return ports, nil
}

// parsePort reads a decimal port without sign, underscores or leading zeros.
func parsePort(s string) (uint16, bool) {
	s = strings.TrimSpace(s)
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

func (d *decoder) rules(e entry) ([]Rule, error) {
	nodes, err := d.list(e, "rules")
	if err != nil {
		return nil, err
	}
	var rules []Rule
	places := make(map[string]*token.Token)
	for i, n := range nodes {
		rule, at, err := d.rule(n, i+1)
		if err != nil {
			return nil, err
		}
		if first, twice := places[rule.Name]; twice {
			return nil, d.errorOn(at, "the name %s is taken by the rule of line %d; give this rule another name",
				quote(rule.Name), first.Position.Line)
		}
		places[rule.Name] = at
		rules = append(rules, rule)
	}
	return rules, nil
}

// ruleName keeps names to what needs no quoting in logs, JSON and shells.
var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// rule returns the rule number i (from 1) and the place of its name.
func (d *decoder) rule(n ast.Node, i int) (r Rule, at *token.Token, err error) {
	what := "rule " + strconv.Itoa(i)
	keys, err := d.mapping(n, what, "name", "class", "min_confidence", "action", "ttl", "mid_stream", "udp_unproven", "one_way", "signal", "except")
	if err != nil {
		return r, nil, err
	}
	r.Name, at = "rule-"+strconv.Itoa(i), start(n)
	if e, ok := keys["name"]; ok {
		at = e.place()
		if r.Name, err = d.text(at, e.value, "name", "tunnels"); err != nil {
			return r, at, err
		}
		if !ruleName.MatchString(r.Name) {
			return r, at, d.errorOn(at, "name %s has to be 1 to 64 letters, digits, \".\", \"_\" or \"-\", the first a letter or digit", quote(r.Name))
		}
		what = "rule " + r.Name
	}
	for _, required := range []struct{ key, example string }{
		{"class", "shadowsocks"}, {"action", "drop"}, {"ttl", "10m"},
	} {
		if _, ok := keys[required.key]; !ok {
			return r, at, d.errorIn(n, "%s has no %s; add one, for example \"%s: %s\"", what, required.key, required.key, required.example)
		}
	}
	if r.Classes, err = d.classes(keys["class"]); err != nil {
		return r, at, err
	}
	confidence, hasConfidence := keys["min_confidence"]
	switch unknown := r.Classes[0] == flow.Unknown; {
	case unknown && hasConfidence:
		err = d.errorOn(confidence.key, "class %s is the outcome when no class is likely enough, so there is no confidence in it; take min_confidence out", quote(flow.Unknown))
	case unknown:
	case hasConfidence:
		r.MinConfidence, err = d.confidence(confidence)
	case d.model == nil:
		err = d.errorIn(n, "%s has no min_confidence, and no model is known to take it from; add one, for example \"min_confidence: 0.9\"", what)
	case len(r.Classes) == 1:
		r.MinConfidence, r.ModelThreshold = d.model.Thresholds[r.Classes[0]], true
	default:
		r.MinConfidence, r.ModelThreshold = d.model.AnyThreshold, true
	}
	if err != nil {
		return r, at, err
	}
	if r.Action, err = d.action(keys["action"]); err != nil {
		return r, at, err
	}
	if r.TTL, err = d.ttl(keys["ttl"]); err != nil {
		return r, at, err
	}
	if e, ok := keys["mid_stream"]; ok {
		if r.MidStream, err = d.boolean(e, "mid_stream"); err != nil {
			return r, at, err
		}
	}
	if e, ok := keys["udp_unproven"]; ok {
		if r.UDPUnproven, err = d.boolean(e, "udp_unproven"); err != nil {
			return r, at, err
		}
	}
	if e, ok := keys["one_way"]; ok {
		if r.OneWay, err = d.boolean(e, "one_way"); err != nil {
			return r, at, err
		}
	}
	if e, ok := keys["signal"]; ok {
		if r.Signals, err = d.signals(e); err != nil {
			return r, at, err
		}
	}
	if e, ok := keys["except"]; ok {
		if r.Except, err = d.matches(e, "except"); err != nil {
			return r, at, err
		}
	}
	return r, at, nil
}

func (d *decoder) classes(e entry) ([]string, error) {
	nodes, err := d.oneOrMore(e, "class")
	if err != nil {
		return nil, err
	}
	var classes []string
	for _, n := range nodes {
		at := e.placeOf(n)
		class, err := d.text(at, n, "class", "shadowsocks")
		if err != nil {
			return nil, err
		}
		switch {
		case class == flow.Background:
			return nil, d.errorOn(at, "class %s is everything that is not a wanted class and can't be named in a rule; take it out", quote(class))
		case class == "":
			return nil, d.errorOn(at, "class is empty; name a class of the model")
		case class == flow.Unknown && len(nodes) > 1:
			return nil, d.errorOn(at, "class %s is the outcome when no class is likely enough and can't stand beside others; give it a rule of its own", quote(class))
		case class == flow.Unknown && d.model != nil && !d.model.Unknown:
			return nil, d.errorOn(at, "class %s never comes: this model always decides for one of its classes, which are %s; take the rule out", quote(class), someOf(d.model.classes()))
		case class != flow.Unknown && d.model != nil && !slices.Contains(d.model.Labels, class):
			known := d.model.classes()
			words := known
			if d.model.Unknown {
				words = append(words, flow.Unknown)
			}
			return nil, d.errorOn(at, "the model has no class %s%s; it has %s", quote(class), didYouMean(class, words), someOf(known))
		case slices.Contains(classes, class):
			return nil, d.errorOn(at, "class %s is named twice; keep one of them", quote(class))
		}
		classes = append(classes, class)
	}
	return classes, nil
}

func (d *decoder) signals(e entry) (all flow.Signals, err error) {
	nodes, err := d.oneOrMore(e, "signal")
	if err != nil {
		return 0, err
	}
	for _, n := range nodes {
		at := e.placeOf(n)
		name, err := d.text(at, n, "signal", "decoy")
		if err != nil {
			return 0, err
		}
		signal, ok := flow.ParseSignal(name)
		switch {
		case !ok:
			return 0, d.errorOn(at, "there is no signal %s%s; there are %s", quote(name), didYouMean(name, flow.SignalNames()), someOf(flow.SignalNames()))
		case all&signal != 0:
			return 0, d.errorOn(at, "signal %s is named twice; keep one of them", quote(name))
		}
		all |= signal
	}
	return all, nil
}

func (d *decoder) confidence(e entry) (float64, error) {
	at := e.place()
	switch e.value.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
	default:
		return 0, d.errorOn(at, "min_confidence has to be a number such as 0.9, but is %s", typeName(e.value))
	}
	const rule = "write a number above 0 and at most 1, such as 0.9"
	// ParseFloat knows hexadecimal, underscores and words; a policy does not.
	if strings.Trim(at.Value, "0123456789.eE+-") != "" {
		return 0, d.errorOn(at, "min_confidence %s is out of range; %s", quote(at.Value), rule)
	}
	f, err := strconv.ParseFloat(at.Value, 64)
	if err != nil || math.IsNaN(f) || f <= 0 || f > 1 {
		return 0, d.errorOn(at, "min_confidence %s is out of range; %s", quote(at.Value), rule)
	}
	return f, nil
}

// boolean returns the value of a key that is true or false, in no other of YAML's
// spellings.
func (d *decoder) boolean(e entry, what string) (bool, error) {
	at := e.place()
	switch n := e.value.(type) {
	case *ast.BoolNode:
		if at.Value == strconv.FormatBool(n.Value) {
			return n.Value, nil
		}
	case *ast.StringNode:
		if at.Value == "true" || at.Value == "false" {
			return false, d.errorOn(at, "%s has to be true or false, but is %s; take the quotes off", what, quote(at.Value))
		}
	default:
		return false, d.errorOn(at, "%s has to be true or false, but is %s", what, typeName(n))
	}
	return false, d.errorOn(at, "%s has to be true or false, but is %s", what, quote(at.Value))
}

func (d *decoder) action(e entry) (Action, error) {
	word, err := d.text(e.place(), e.value, "action", "drop")
	if err != nil {
		return Pass, err
	}
	if word != "drop" {
		return Pass, d.errorOn(e.place(), "unknown action %s%s; write drop (what no rule takes passes)", quote(word), didYouMean(word, []string{"drop"}))
	}
	return Drop, nil
}

func (d *decoder) ttl(e entry) (time.Duration, error) {
	at := e.place()
	text := at.Value // of a bare number, as it was written
	if _, bare := e.value.(*ast.IntegerNode); !bare {
		var err error
		if text, err = d.text(at, e.value, "ttl", "10m"); err != nil {
			return 0, err
		}
	}
	ttl, err := ParseTTL(text)
	if err != nil {
		return 0, d.errorOn(at, "ttl %v", err)
	}
	return ttl, nil
}

// quote quotes what the file says, cut to a length that fits a line.
func quote(s string) string { return strconv.Quote(cut(s)) }

// cut cuts s to a length that fits a line.
func cut(s string) string {
	const longest = 48
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return s
}

// someOf lists words, at most a dozen.
func someOf(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	if len(words) > 12 {
		return strings.Join(words[:12], ", ") + fmt.Sprintf(" and %d more", len(words)-12)
	}
	return strings.Join(words, ", ")
}

func didYouMean(word string, known []string) string {
	if guess := nearest.Word(word, known); guess != "" {
		return ", did you mean " + guess + "?"
	}
	return ""
}

// oneLine makes s fit for one line of a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}
